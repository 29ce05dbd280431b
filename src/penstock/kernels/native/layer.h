// Sequences of kernels that are called as one.
#pragma once

#include "ops.h"

namespace penstock {

// Attention for `count` sets of tiles.
void attend(Context& context, Attention* sets, int64_t count);

// A decoder layer. Fills in where the library's own memory goes between the kernels.
void run_layer(Context& context, Layer& layer);

}  // namespace penstock

// Sequences of kernels that are called as one.
#pragma once

#include "ops.h"

namespace penstock {

// Attention for `count` sets of tiles.
void attend(Context& context, Attention* sets, int64_t count);

// Decoder layers, one after the other.
void run_layers(Context& context, const Layer* layers, int64_t count, const Step& step);

}  // namespace penstock

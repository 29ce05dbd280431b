// The kernels that use AMX tiles, all for bfloat16.
#pragma once

#include "ops.h"

namespace penstock {

void linear_amx(Context& context, const Product& p);
double register_loop_amx(Context& context, int64_t rounds);
void attention_amx(Context& context, const Attention* sets, int64_t count);

}  // namespace penstock

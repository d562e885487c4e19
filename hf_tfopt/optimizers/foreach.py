"""torch's operations on lists of tensors, a kernel for all where the device has one.

They have no public names, though torch's own optimizers are built of them; a test holds that they
are there.
"""

import torch

# pyright: reportPrivateUsage=false
foreach_add = torch._foreach_add_
foreach_mul = torch._foreach_mul_
foreach_norm = torch._foreach_norm
foreach_sign = torch._foreach_sign_
foreach_lerp = torch._foreach_lerp_
foreach_lerped = torch._foreach_lerp
fused_adamw = torch._fused_adamw_

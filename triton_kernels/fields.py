"""The members of the structs in csrc/launch.h and csrc/update_math.h, in their order; a test compares them.

Each struct arrives as a row of numbers. The constants are the members' positions in it.
"""

import triton.language as tl

CHUNK = ("row", "begin", "end", "number")
ROW = ("param", "exp_avg", "numel", "group", "param_type")
GROUP = (
    *("lr", "beta1", "beta2", "beta3", "eps", "l2_decay", "decoupled_decay", "grad_sign"),
    *("first_nonzero", "norms", "anchor"),
)
FACTORS = ("step_size", "inv_correction2", "eps", "decay", "unscale")

CHUNK_SIZE = tl.constexpr(len(CHUNK))
CHUNK_ROW = tl.constexpr(CHUNK.index("row"))
CHUNK_BEGIN = tl.constexpr(CHUNK.index("begin"))
CHUNK_END = tl.constexpr(CHUNK.index("end"))
CHUNK_NUMBER = tl.constexpr(CHUNK.index("number"))

ROW_SIZE = tl.constexpr(len(ROW))
ROW_PARAM = tl.constexpr(ROW.index("param"))
ROW_EXP_AVG = tl.constexpr(ROW.index("exp_avg"))
ROW_GROUP = tl.constexpr(ROW.index("group"))

GROUP_SIZE = tl.constexpr(len(GROUP))
GROUP_LR = tl.constexpr(GROUP.index("lr"))
GROUP_BETA1 = tl.constexpr(GROUP.index("beta1"))
GROUP_BETA2 = tl.constexpr(GROUP.index("beta2"))
GROUP_BETA3 = tl.constexpr(GROUP.index("beta3"))
GROUP_EPS = tl.constexpr(GROUP.index("eps"))
GROUP_L2_DECAY = tl.constexpr(GROUP.index("l2_decay"))
GROUP_DECOUPLED_DECAY = tl.constexpr(GROUP.index("decoupled_decay"))
GROUP_GRAD_SIGN = tl.constexpr(GROUP.index("grad_sign"))
GROUP_FIRST_NONZERO = tl.constexpr(GROUP.index("first_nonzero"))
GROUP_NORMS = tl.constexpr(GROUP.index("norms"))
GROUP_ANCHOR = tl.constexpr(GROUP.index("anchor"))

FACTORS_SIZE = tl.constexpr(len(FACTORS))
FACTORS_STEP_SIZE = tl.constexpr(FACTORS.index("step_size"))
FACTORS_INV_CORRECTION2 = tl.constexpr(FACTORS.index("inv_correction2"))
FACTORS_EPS = tl.constexpr(FACTORS.index("eps"))
FACTORS_DECAY = tl.constexpr(FACTORS.index("decay"))
FACTORS_UNSCALE = tl.constexpr(FACTORS.index("unscale"))

"""The dtypes under PyTorch's names: asenpp.float32 is "float32", asenpp.long "int64".

A dtype is its name, a str, so `x.dtype == asenpp.float32` and `dtype=asenpp.float32` are what they are in PyTorch.
"""

float16 = half = "float16"
bfloat16 = "bfloat16"
float32 = float = "float32"
float64 = double = "float64"
uint8 = "uint8"
int32 = int = "int32"
int64 = long = "int64"
bool = "bool"

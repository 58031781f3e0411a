"""One thread for everybody: two threads beside another busy process are slower than one."""

import torch

torch.set_num_threads(1)

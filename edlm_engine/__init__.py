"""A fast engine for block-diffusion language models of the Efficient-DLM kind."""

import os

# GNU OpenMP's default barrier spins; beside another busy process on the same cores it makes a forward
# about 15 times slower. The policy counts only before libgomp is loaded, so before torch is.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

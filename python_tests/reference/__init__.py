"""Every op and the generation loop again in plain fp32 torch: what the tests compare with."""

"""Steps that the device leads from one to the next, and how the host follows."""

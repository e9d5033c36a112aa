"""What a step works on: its inputs, the block state, the K/V cache and the policies."""

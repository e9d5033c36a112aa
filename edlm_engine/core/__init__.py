"""The stepping thread, the scheduler, requests and what becomes of them."""

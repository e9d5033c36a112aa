"""What happens between two forwards: block state and the policy that commits tokens into it."""

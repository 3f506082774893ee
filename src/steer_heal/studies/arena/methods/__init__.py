"""Training that the product does not have and an arm needs: preferences, and a learned direction."""

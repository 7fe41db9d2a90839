"""What training did to a model: what it gained, what that cost, and pictures of both."""

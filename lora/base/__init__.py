"""The frozen model under the adapters: loading it, and what makes it fast and small."""

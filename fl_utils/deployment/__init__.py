"""The federation as real processes, on machines of their own."""

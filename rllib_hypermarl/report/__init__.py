"""Pictures and numbers of finished or running runs."""

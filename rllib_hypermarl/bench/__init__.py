"""What `bench` runs, and the peers it compares with."""

"""What a run will do, take and cost, said before it starts; what is certain to fail is refused. Start reading at `forecast`."""

"""The follower of one instance's journal, which writes its log file. Runs as agent0, in a unit of its own."""

"""Parse and run the commands of the program."""

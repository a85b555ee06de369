"""What the commands of the program parse and print."""

"""What the commands print for people: tables and sentences in the terminal's width, a module for each command."""

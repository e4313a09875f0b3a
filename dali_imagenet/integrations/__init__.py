"""Other libraries read, and joined to: each module imports its library when it is asked for."""

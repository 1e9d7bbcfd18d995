"""Who is measured: every contender answers and asks the same, each in its own way."""

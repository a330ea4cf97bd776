"""What a machine says of its power, heat, clocks and load: one parser per source, one form."""

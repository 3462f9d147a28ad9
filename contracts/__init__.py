"""What the data are: the wire, the tables and the sensor registry. Imports nothing of the product."""

"""How weights become int4 or int8: what a quantized weight is, how its scales and its integers are chosen."""

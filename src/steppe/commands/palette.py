"""Colours that colour-blind readers tell apart too."""

# Okabe and Ito's (https://jfly.uni-koeln.de/color), their black aside, and a grey.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9")
GREY = "#999999"

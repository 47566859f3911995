"""How trained models are scored and how curved their loss is."""

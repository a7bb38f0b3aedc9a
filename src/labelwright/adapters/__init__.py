"""Small trainable parts around a frozen vision-language model: on its features, or inside it."""

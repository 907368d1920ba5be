"""What a scheduler could do that knew the future: yardsticks, never rivals."""

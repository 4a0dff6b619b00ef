"""The one library that every service imports; it imports none of them."""

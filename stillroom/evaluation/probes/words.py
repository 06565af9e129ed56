"""Names for made-up people."""

NAMES = (
    "Ada", "Adam", "Agnes", "Alma", "Anton", "Berta", "Bruno", "Carla", "Clara", "Conrad", "Dora", "Edgar",
    "Elsa", "Emil", "Erik", "Eva", "Felix", "Frida", "Greta", "Hanna", "Hugo", "Ida", "Jonas", "Lars",
)  # fmt: skip

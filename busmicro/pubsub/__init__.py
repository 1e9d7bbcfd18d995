"""Tell: publish and subscribe. This version has calls only; events get their home here."""

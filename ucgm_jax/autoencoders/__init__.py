"""Images to latents and back, behind one interface: `names.build` gives an `interface.Autoencoder`."""

SUMMARY = "A console image that answers questions about its documents"
DESCRIPTION = "The smallest image with Vademecum, two models and a way in: for a first answer from a board."
LICENSE = "MIT"

inherit core-image

IMAGE_FEATURES += "ssh-server-dropbear"
IMAGE_INSTALL:append = " vademecum vademecum-models"

# Room for a library: 512 MiB.
IMAGE_ROOTFS_EXTRA_SPACE = "524288"

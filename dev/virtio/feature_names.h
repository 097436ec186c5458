/*
 * Feature bits by name, as virtio 1.2 spells them in lower case ("event_idx", "mrg_rxbuf"), and withholding
 * them from a driver: for tests of drivers and hunts for defects.
 */
#ifndef FONDA_DEV_VIRTIO_FEATURE_NAMES_H
#define FONDA_DEV_VIRTIO_FEATURE_NAMES_H

#include "dev/virtio/virtio.h"

/* The device's kind as people name it ("net"), or NULL for an unknown ID. */
const char *vfeat_kind(uint16_t id);

/* Takes the features of `text` from what dev offers, and with them those that need them. The text is
 * "KIND[INDEX]:NAME[,NAME]...", KIND "all" or a device's; it does nothing to devices of another kind, or with
 * another index than dev's among its kind, from 0. Call before a guest runs. Errors: -EINVAL with a sentence
 * that lists what there is. */
int vfeat_withhold(struct vdev *dev, unsigned index, const char *text, struct err *err);

/* Whether a text makes sense, whatever devices there are. Errors: -EINVAL. */
int vfeat_check(const char *text, struct err *err);

#endif

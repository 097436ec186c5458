/*
 * User namespaces of unprivileged callers; image_enter_namespace() and image_host_root() are in image.h.
 */
#ifndef FONDA_IMAGE_NS_H
#define FONDA_IMAGE_NS_H

#include <stdbool.h>

/* Whether the process has one user id only (of its own namespace). */
bool ns_single_id(void);

#endif

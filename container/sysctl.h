/* linux.sysctl: only what belongs to a namespace of the container's own. */
#ifndef FONDA_CONTAINER_SYSCTL_H
#define FONDA_CONTAINER_SYSCTL_H

#include "base/err.h"
#include "container/config.h"

int sysctl_check(const struct oci_config *config, struct err *err); /* before anything is made */
int sysctl_write(const struct oci_config *config, int proc_fd,
                 struct err *err); /* proc_fd: a trusted procfs */

#endif

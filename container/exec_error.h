/* Says what is wrong with a file that execve refused: missing interpreter, other architecture, no permission.
 */
#ifndef FONDA_CONTAINER_EXEC_ERROR_H
#define FONDA_CONTAINER_EXEC_ERROR_H

#include "base/err.h"

/* code: the negative errno of execve. Reads the file; returns code. */
int exec_error(const char *path, int code, struct err *err);

#endif

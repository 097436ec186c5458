/*
 * The client's side of a control socket (control.h): one blocking call at a time. For tests, the command line
 * and the core.
 *
 * Threads: one at a time per client.
 */
#ifndef FONDA_CONTROL_CLIENT_H
#define FONDA_CONTROL_CLIENT_H

#include <jansson.h>
#include <stddef.h>

#include "base/err.h"

#define CONTROL_CLIENT_FDS_MAX 16u
#define CONTROL_REPLY_MAX      (8u << 20) /* a line from the server that is longer is refused */

struct control_client;

/* Errors: -ENOENT (no such socket), -ECONNREFUSED (nobody listens), -EACCES, -ENAMETOOLONG, -ENOMEM. */
int control_connect(const char *path, struct control_client **ret_client, struct err *err);
void control_client_free(struct control_client *client);
/* The socket: for poll, and for raw bytes behind "attach". */
int control_client_fd(const struct control_client *client);

/* Sends a request (params is taken over; NULL: none) and waits for its reply, at most timeout_ms (-1: for
 * ever). Events that come meanwhile are kept for control_client_event. ret_result may be NULL; otherwise the
 * caller gets a reference. Errors: -EREMOTEIO when the server answered with an error: err->text has its
 * message and hint, and control_client_code its code; -ECONNRESET when it is gone; -ETIMEDOUT; -EPROTO;
 * -ENOMEM. */
int control_client_call(struct control_client *client, const char *method, json_t *params, int timeout_ms,
                        json_t **ret_result, struct err *err);
/* The same with open descriptors (count of them, at most CONTROL_CLIENT_FDS_MAX), which stay the caller's. */
int control_client_call_fds(struct control_client *client, const char *method, json_t *params, const int *fds,
                            unsigned count, int timeout_ms, json_t **ret_result, struct err *err);
/* The code of the last -EREMOTEIO ("not_found"), or "". */
const char *control_client_code(const struct control_client *client);

/* Waits for a job that a call began: like control_client_call, with the job's result or error. */
int control_client_job(struct control_client *client, json_t *reply, int timeout_ms, json_t **ret_result,
                       struct err *err);

/* The next event, whole: {"event":..., "data":...}. Errors as above. */
int control_client_event(struct control_client *client, int timeout_ms, json_t **ret_event, struct err *err);

/* Behind "attach": takes up to size raw bytes that came together with the reply. Returns how many. */
size_t control_client_take(struct control_client *client, void *buf, size_t size);

#endif

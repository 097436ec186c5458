/*
 * The tables of members. Texts are shown to people: in OpenAPI, and as the hint of a refused value.
 */
#include <stddef.h>
#include <stdint.h>

#include "base/util.h"
#include "core/model.h"

#define TYPE(var, kind_, plural_, schema_, fields_, about_)                                                  \
    const struct object_type var = {kind_, plural_, schema_, about_, fields_, ARRAY_SIZE(fields_)}

#define NUMBER_MAX INT64_MAX
#define PATH_LEN   4095

static const char *const kinds[] = {"vm", "container", NULL};
static const char *const states[] = {"creating", "stopped",  "starting", "running", "paused",
                                     "stopping", "deleting", "failed",   "saved",   NULL};
static const char *const engines[] = {"bt", "kvm", NULL};
static const char *const policies[] = {"never", "on-failure", "always", NULL};
static const char *const pulls[] = {"missing", "always", "never", NULL};
static const char *const container_networks[] = {"user", "none", NULL};
static const char *const roles[] = {"none", "viewer", "operator", "admin", NULL};
static const char *const job_states[] = {"queued", "running", "done", "failed", "canceled", NULL};
static const char *const formats[] = {"raw", "qcow2", NULL};
static const char *const image_kinds[] = {"disk", "kernel", "initrd", "iso", NULL};
static const char *const network_modes[] = {"user", "tap", "wire", NULL};
static const char *const on_off[] = {"on", "off", NULL};

static const struct field error_fields[] = {
    {"code", FIELD_STRING, F_RO, 0, 64, .about = "a word that never changes its meaning"},
    {"detail", FIELD_STRING, F_RO, 0, 512, .about = "what was wrong, with what"},
    {"hint", FIELD_STRING, F_RO, 0, 256, .about = "what to do"},
};
TYPE(model_error, "error", NULL, "Error", error_fields, "Why something failed.");

static const struct field instance_fields[] = {
    {"name", FIELD_NAME, F_REQUIRED | F_CREATE, .about = "unique among instances; changed by rename"},
    {"id", FIELD_STRING, F_RO | F_REQUIRED, 1, 32, .about = "never changes, and is never used again"},
    {"version", FIELD_INT, F_RO, 0, NUMBER_MAX, .about = "counts changes; the ETag"},
    {"kind", FIELD_ENUM, F_CREATE, .values = kinds, .def = "\"vm\"", .about = "a machine or a container"},
    {"description", FIELD_STRING, 0, 0, 1024, .def = "\"\"", .about = "free text"},
    {"labels", FIELD_MAP, 0, 0, 64, .def = "{}", .about = "names and texts of your own"},
    {"state", FIELD_ENUM, F_RO, .values = states, .def = "\"creating\"", .about = "what it does now"},
    {"state_reason", FIELD_STRING, F_RO, 0, 1024, .def = "\"\"", .about = "why, where that is not plain"},
    {"exit_status", FIELD_INT, F_RO, -1, 1024, .about = "how it ended the last time; -1: unknown"},
    {"owner", FIELD_STRING, F_RO, 0, 64, .def = "\"\"", .about = "the user whose quota it counts against"},
    {"created_at", FIELD_TIME, F_RO, .about = "when it was created"},
    {"started_at", FIELD_TIME, F_RO, .about = "when it started the last time"},
    {"pid", FIELD_INT, F_RO, 0, NUMBER_MAX, .about = "its process on the host, while there is one"},
    {"restarts", FIELD_INT, F_RO, 0, NUMBER_MAX, .def = "0",
     .about = "how often the restart policy restarted it"},
    {"after_restart", FIELD_BOOL, F_RO, .def = "false", .about = "changes wait for its next start"},
    {"applying", FIELD_STRING, F_RO, 1, 64,
     .about = "the job that makes a running machine take its changes, while it does"},
    {"must_restart", FIELD_BOOL, F_RO, .def = "false",
     .about = "some of these changes can't be had while it runs"},
    {"changes", FIELD_INT, F_RO, 0, NUMBER_MAX, .def = "0", .about = "counts changes of what it is made of"},
    {"snapshot", FIELD_STRING, F_RO, 1, 64, .about = "the snapshot that it was at last"},
    {"restoring", FIELD_STRING, F_RO, 1, 64, .about = "the snapshot that it is going back to"},
    {"template", FIELD_STRING, F_RO, 1, 64, .about = "the template that it was made from"},
    {"machine_id", FIELD_STRING, F_RO, 32, 32,
     .about = "a copy's own machine id, which its kernel's command line tells it"},
    {"saved_bytes", FIELD_INT, F_RO, 0, NUMBER_MAX, .about = "bytes of its saved memory"},
    {"volumes_first", FIELD_BOOL, F_RO,
     .about = "volumes come before disks: its first volume was copied from a disk"},
    {"cpus", FIELD_INT, F_RESTART, 1, 32,
     .about = "virtual CPUs, 1 to 32; a machine has 1 unless said otherwise"},
    {"memory", FIELD_SIZE, F_RESTART | F_LIVE, 1 << 20, INT64_C(1) << 44,
     .about = "memory in bytes, or a text such as \"512M\"; at least 1M. A machine has 256M unless said "
              "otherwise, "
              "a container no limit"},
    {"engine", FIELD_ENUM, F_RESTART, .values = engines,
     .about = "how a machine's code runs: bt unless said otherwise"},
    {"cpu_model", FIELD_STRING, F_RESTART, 1, 64, .about = "the CPU that the guest sees"},
    {"kernel", FIELD_STRING, F_HOST | F_RESTART, 1, PATH_LEN,
     .about = "kernel: an absolute path on the host"},
    {"initrds", FIELD_STRINGS, F_HOST | F_RESTART, 0, 8, .def = "[]",
     .about = "initial RAM disks, absolute paths"},
    {"append", FIELD_STRING, F_RESTART, 0, 2048, .about = "the kernel's command line"},
    {"disks", FIELD_STRINGS, F_HOST | F_RESTART | F_LIVE, 0, 16, .def = "[]",
     .about = "disks on the host, as `fonda run --disk` takes them"},
    {"volumes", FIELD_STRINGS, F_RESTART | F_LIVE, 0, 16, .def = "[]",
     .about = "volumes, by name, as further disks"},
    {"networks", FIELD_STRINGS, F_RESTART | F_LIVE, 0, 8, .def = "[]",
     .about = "networks, by name; \"user\" is always there"},
    {"publish", FIELD_STRINGS, F_HOST | F_RESTART, 0, 16, .def = "[]",
     .about = "ports of the host, as HOST:GUEST"},
    {"shares", FIELD_STRINGS, F_HOST | F_RESTART, 0, 16, .def = "[]",
     .about = "directories of the host, as DIRECTORY:TAG"},
    {"rng", FIELD_ENUM, F_RESTART, .values = on_off, .def = "\"on\"", .about = "a source of random numbers"},
    {"reboot", FIELD_BOOL, F_RESTART, .def = "true", .about = "whether a guest's reboot starts it again"},
    {"autostart", FIELD_BOOL, 0, .def = "false", .about = "start with the daemon"},
    {"autostart_order", FIELD_INT, 0, 0, 1000, .def = "100", .about = "lower ones start first"},
    {"restart_policy", FIELD_ENUM, 0, .values = policies, .def = "\"never\"",
     .about = "what happens when it ends by itself"},
    {"stop_timeout", FIELD_INT, 0, 0, 3600, .def = "30",
     .about = "seconds from the power button until it is ended by force"},
    {"stop_signal", FIELD_STRING, F_RESTART, 1, 32, .about = "container: what asks it to end, such as INT"},
    {"restart_limit", FIELD_INT, F_RESTART, 0, 1000000,
     .about = "container: restarts on failure, at most; 0: no limit"},
    {"auto_remove", FIELD_BOOL, 0, .def = "false", .about = "delete it when it ends"},
    {"image", FIELD_STRING, F_CREATE, 1, 512,
     .about = "container, or a machine of an image: the image, such as \"debian:12\""},
    {"pull", FIELD_ENUM, F_CREATE, .values = pulls,
     .about = "container: when to fetch the image: missing (the default), always, never"},
    {"insecure_registry", FIELD_BOOL, F_CREATE | F_HOST,
     .about = "container: the registry may speak plain HTTP"},
    {"command", FIELD_STRINGS, F_RESTART, 0, 256,
     .about = "container: program and arguments, instead of the image's"},
    {"entrypoint", FIELD_STRING, F_RESTART, 0, 4096,
     .about = "container: instead of the image's; \"\": none"},
    {"env", FIELD_STRINGS, F_RESTART, 0, 256, .about = "container: variables, NAME=VALUE"},
    {"user", FIELD_STRING, F_RESTART, 1, 128, .about = "container: USER[:GROUP], names or numbers"},
    {"workdir", FIELD_STRING, F_RESTART, 1, PATH_LEN, .about = "container: the working directory"},
    {"hostname", FIELD_STRING, F_RESTART, 1, 64, .about = "container: its host name"},
    {"terminal", FIELD_BOOL, F_RESTART, .about = "container: its standard streams are a terminal"},
    {"interactive", FIELD_BOOL, F_RESTART, .about = "container: its input stays open for those who attach"},
    {"mounts", FIELD_STRINGS, F_HOST | F_RESTART, 0, 64,
     .about = "container: SOURCE:TARGET[:ro]; a source without / is a folder that outlives containers"},
    {"tmpfs", FIELD_STRINGS, F_RESTART, 0, 32, .about = "container: TARGET[:OPTIONS] in memory"},
    {"devices", FIELD_STRINGS, F_HOST | F_RESTART, 0, 64, .about = "container: SOURCE[:TARGET][:rwm]"},
    {"cap_add", FIELD_STRINGS, F_HOST | F_RESTART, 0, 64, .about = "container: further capabilities"},
    {"cap_drop", FIELD_STRINGS, F_RESTART, 0, 64, .about = "container: capabilities that it does not get"},
    {"security", FIELD_STRINGS, F_HOST | F_RESTART, 0, 16,
     .about = "container: no-new-privileges, seccomp=..., apparmor=..., label=..., unmask=ALL"},
    {"ulimits", FIELD_STRINGS, F_HOST | F_RESTART, 0, 32, .about = "container: NAME=SOFT[:HARD]"},
    {"sysctls", FIELD_STRINGS, F_HOST | F_RESTART, 0, 32,
     .about = "container: kernel parameters of its own namespaces"},
    {"init", FIELD_BOOL, F_RESTART, .about = "container: a small init is the first process"},
    {"system", FIELD_BOOL, F_CREATE,
     .about = "container: a whole system, whose own init (systemd) is the first process"},
    {"read_only", FIELD_BOOL, F_RESTART, .about = "container: its root can't be written"},
    {"privileged", FIELD_BOOL, F_HOST | F_RESTART, .about = "container: all capabilities and devices"},
    {"network_mode", FIELD_ENUM, F_RESTART, .values = container_networks,
     .about = "container: user (NAT, the default) or none"},
    {"host_network", FIELD_BOOL, F_HOST | F_RESTART, .about = "container: the host's network"},
    {"cpu_limit", FIELD_STRING, F_RESTART | F_LIVE, 1, 16,
     .about = "CPUs whose time it may use, such as \"1.5\"; all of a machine's process together"},
    {"cpu_weight", FIELD_INT, F_RESTART | F_LIVE, 0, 10000,
     .about = "machine: its share of CPU time where that is short, 1 to 10000; 100 is everybody's, as is 0"},
    {"memory_limit", FIELD_SIZE, F_RESTART | F_LIVE, 0, INT64_C(1) << 44,
     .about = "machine: bytes that its process may have, guest memory and all else; 0: no limit"},
    {"pids_limit", FIELD_INT, F_RESTART | F_LIVE, 0, 4194304,
     .about = "processes (of a machine: threads) at most; 0: no limit"},
    {"memory_swap", FIELD_SIZE, F_RESTART | F_LIVE, 0, INT64_C(1) << 44,
     .about = "memory and swap together; a machine's needs memory_limit"},
    {"shm_size", FIELD_SIZE, F_RESTART, 0, INT64_C(1) << 44, .about = "container: /dev/shm"},
    {"health_cmd", FIELD_STRING, F_RESTART, 1, 4096, .about = "container: a shell command that checks on it"},
    {"health_interval", FIELD_INT, F_RESTART, 1, 86400, .about = "container: seconds between checks"},
    {"health_timeout", FIELD_INT, F_RESTART, 1, 86400, .about = "container: seconds that a check may take"},
    {"health_retries", FIELD_INT, F_RESTART, 1, 1000,
     .about = "container: failures in a row that make it unhealthy"},
    {"health_start_period", FIELD_INT, F_RESTART, 0, 86400,
     .about = "container: seconds in which failures don't count"},
    {"changed_by", FIELD_STRING, F_RO, 0, 64, .about = "who changed it last"},
};
TYPE(model_instance, "instance", "instances", "Instance", instance_fields, "A machine or a container.");

static const struct field image_fields[] = {
    {"name", FIELD_NAME, F_REQUIRED | F_CREATE, .about = "unique among images"},
    {"version", FIELD_INT, F_RO, 0, NUMBER_MAX, .about = "counts changes; the ETag"},
    {"kind", FIELD_ENUM, F_CREATE, .values = image_kinds, .def = "\"disk\"", .about = "what is in it"},
    {"description", FIELD_STRING, 0, 0, 1024, .def = "\"\"", .about = "free text"},
    {"labels", FIELD_MAP, 0, 0, 64, .def = "{}", .about = "names and texts of your own"},
    {"path", FIELD_STRING, F_REQUIRED | F_CREATE | F_HOST, 1, PATH_LEN,
     .about = "the file, an absolute path on the host"},
    {"size", FIELD_INT, F_RO, 0, NUMBER_MAX, .def = "0", .about = "bytes of the file"},
    {"created_at", FIELD_TIME, F_RO, .about = "when it was registered"},
    {"changed_by", FIELD_STRING, F_RO, 0, 64, .about = "who changed it last"},
};
TYPE(model_image, "image", "images", "Image", image_fields, "A file that instances start from.");

static const struct field volume_fields[] = {
    {"name", FIELD_NAME, F_REQUIRED | F_CREATE, .about = "unique among volumes"},
    {"id", FIELD_STRING, F_RO | F_REQUIRED, 1, 32, .about = "never changes"},
    {"version", FIELD_INT, F_RO, 0, NUMBER_MAX, .about = "counts changes; the ETag"},
    {"description", FIELD_STRING, 0, 0, 1024, .def = "\"\"", .about = "free text"},
    {"labels", FIELD_MAP, 0, 0, 64, .def = "{}", .about = "names and texts of your own"},
    {"format", FIELD_ENUM, F_CREATE, .values = formats, .def = "\"qcow2\"",
     .about = "how it is stored: qcow2, or raw, which can have no snapshots"},
    {"backing", FIELD_STRING, F_RO, 1, 64, .about = "the volume that it is a linked copy of, which it needs"},
    {"template", FIELD_STRING, F_RO, 1, 64, .about = "the template that it belongs to: nothing writes to it"},
    {"made_for", FIELD_STRING, F_RO, 1, 32, .about = "id of the instance or template that it was copied for"},
    {"size", FIELD_SIZE, F_REQUIRED | F_CREATE, 512, INT64_C(1) << 46,
     .about = "bytes, or a text such as \"10G\""},
    {"owner", FIELD_STRING, F_RO, 0, 64, .def = "\"\"", .about = "the user whose quota it counts against"},
    {"created_at", FIELD_TIME, F_RO, .about = "when it was created"},
    {"changed_by", FIELD_STRING, F_RO, 0, 64, .about = "who changed it last"},
};
TYPE(model_volume, "volume", "volumes", "Volume", volume_fields,
     "A disk that outlives the instances that use it.");

static const struct field network_fields[] = {
    {"name", FIELD_NAME, F_REQUIRED | F_CREATE, .about = "unique among networks"},
    {"version", FIELD_INT, F_RO, 0, NUMBER_MAX, .about = "counts changes; the ETag"},
    {"description", FIELD_STRING, 0, 0, 1024, .def = "\"\"", .about = "free text"},
    {"labels", FIELD_MAP, 0, 0, 64, .def = "{}", .about = "names and texts of your own"},
    {"mode", FIELD_ENUM, F_CREATE, .values = network_modes, .def = "\"user\"",
     .about = "user: NAT in the instance's process; tap, wire: as `fonda run --net` takes them"},
    {"options", FIELD_STRING, F_CREATE | F_HOST, 1, 1024,
     .about = "further options of --net, such as \"mtu=1500\""},
    {"created_at", FIELD_TIME, F_RO, .about = "when it was created"},
    {"changed_by", FIELD_STRING, F_RO, 0, 64, .about = "who changed it last"},
};
TYPE(model_network, "network", "networks", "Network", network_fields, "What instances are attached to.");

static const struct field user_fields[] = {
    {"name", FIELD_NAME, F_REQUIRED | F_CREATE,
     .about = "a user of the host, the common name of a client certificate, or the owner of a token"},
    {"version", FIELD_INT, F_RO, 0, NUMBER_MAX, .about = "counts changes; the ETag"},
    {"description", FIELD_STRING, 0, 0, 1024, .def = "\"\"", .about = "free text"},
    {"role", FIELD_ENUM, 0, .values = roles, .def = "\"none\"", .about = "on everything"},
    {"grants", FIELD_MAP, 0, 0, 256, .values = roles, .def = "{}",
     .about = "roles on single instances, by name"},
    {"quota_instances", FIELD_INT, 0, 0, 1000000, .about = "at most so many instances"},
    {"quota_cpus", FIELD_INT, 0, 0, 1000000, .about = "at most so many virtual CPUs, all instances together"},
    {"quota_memory", FIELD_SIZE, 0, 0, INT64_C(1) << 50,
     .about = "at most so much memory, all instances together"},
    {"quota_disk", FIELD_SIZE, 0, 0, INT64_C(1) << 50,
     .about = "at most so many bytes of volumes, snapshots, saved memory and backups"},
    {"token_hash", FIELD_STRING, F_RO | F_SECRET, 64, 64, .about = "SHA-256 of the token"},
    {"has_token", FIELD_BOOL, F_RO, .def = "false", .about = "whether a token was made"},
    {"created_at", FIELD_TIME, F_RO, .about = "when it was created"},
    {"changed_by", FIELD_STRING, F_RO, 0, 64, .about = "who changed it last"},
};
TYPE(model_user, "user", "users", "User", user_fields, "Somebody who may use this daemon.");

static const struct field job_fields[] = {
    {"name", FIELD_NAME, F_RO | F_REQUIRED, .about = "\"j\" and a number"},
    {"version", FIELD_INT, F_RO, 0, NUMBER_MAX, .about = "counts changes; the ETag"},
    {"number", FIELD_INT, F_RO | F_REQUIRED, 1, NUMBER_MAX, .about = "later jobs have greater numbers"},
    {"type", FIELD_STRING, F_RO | F_REQUIRED, 1, 64, .about = "\"instance.start\" and the like"},
    {"target", FIELD_STRING, F_RO | F_REQUIRED, 1, 128, .about = "\"instances/web\": what it works on"},
    {"state", FIELD_ENUM, F_RO | F_REQUIRED, .values = job_states, .about = "where it is"},
    {"owner", FIELD_STRING, F_RO, 0, 64, .about = "who asked for it"},
    {"step", FIELD_STRING, F_RO, 0, 256, .def = "\"\"", .about = "what it does now"},
    {"steps_done", FIELD_INT, F_RO, 0, NUMBER_MAX, .def = "0", .about = "steps behind it"},
    {"steps", FIELD_INT, F_RO, 0, NUMBER_MAX, .def = "0", .about = "steps in all"},
    {"bytes_done", FIELD_INT, F_RO, 0, NUMBER_MAX, .def = "0", .about = "bytes of the current step"},
    {"bytes", FIELD_INT, F_RO, 0, NUMBER_MAX, .def = "0", .about = "bytes of the current step in all"},
    {"error", FIELD_OBJECT, F_RO, .sub = &model_error, .about = "why it failed"},
    {"created_at", FIELD_TIME, F_RO, .about = "when it was asked for"},
    {"started_at", FIELD_TIME, F_RO, .about = "when it began"},
    {"ended_at", FIELD_TIME, F_RO, .about = "when it ended"},
    {"log", FIELD_STRINGS, F_RO, 0, 200, .def = "[]", .about = "what it said on its way"},
};
TYPE(model_job, "job", "jobs", "Job", job_fields, "Work that takes longer than a request.");

static const struct field event_fields[] = {
    {"seq", FIELD_INT, F_RO | F_REQUIRED, 1, NUMBER_MAX, .about = "counts events; gaps never happen"},
    {"time", FIELD_TIME, F_RO | F_REQUIRED, .about = "when"},
    {"type", FIELD_STRING, F_RO | F_REQUIRED, 1, 64, .about = "\"instance.started\" and the like"},
    {"subject", FIELD_STRING, F_RO | F_REQUIRED, 1, 128, .about = "\"instances/web\": what it happened to"},
    {"who", FIELD_STRING, F_RO, 0, 64, .about = "who caused it"},
    {"data", FIELD_ANY, F_RO, .about = "more about it"},
};
TYPE(model_event, "event", "events", "Event", event_fields, "Something that happened.");

static const struct field audit_fields[] = {
    {"seq", FIELD_INT, F_RO | F_REQUIRED, 1, NUMBER_MAX, .about = "counts records"},
    {"time", FIELD_TIME, F_RO | F_REQUIRED, .about = "when"},
    {"who", FIELD_STRING, F_RO | F_REQUIRED, 0, 64, .about = "who asked"},
    {"from", FIELD_STRING, F_RO, 0, 64, .about = "over what: \"unix\", or an address"},
    {"method", FIELD_STRING, F_RO | F_REQUIRED, 1, 16, .about = "HTTP method"},
    {"path", FIELD_STRING, F_RO | F_REQUIRED, 1, 256, .about = "what was asked for"},
    {"status", FIELD_INT, F_RO | F_REQUIRED, 100, 599, .about = "what was answered"},
};
TYPE(model_audit, "audit record", "audit", "AuditRecord", audit_fields,
     "Who did what: each request that changes something.");

static const struct field stop_fields[] = {
    {"force", FIELD_BOOL, 0, .about = "true: at once, without asking the guest"},
    {"timeout", FIELD_INT, 0, 0, 3600,
     .about = "seconds until it is ended by force, instead of the instance's own"},
};
TYPE(model_stop, "stop request", NULL, "Stop", stop_fields, "How to stop.");

static const struct field start_fields[] = {
    {"hold", FIELD_BOOL, 0, .about = "true: a container's program begins once somebody attaches"},
};
TYPE(model_start, "start request", NULL, "Start", start_fields, "How to start.");

static const struct field kill_fields[] = {
    {"signal", FIELD_STRING, 0, 1, 16,
     .about = "a name such as TERM, or a number; KILL unless said otherwise"},
};
TYPE(model_kill, "kill request", NULL, "Kill", kill_fields, "A signal.");

static const struct field wait_fields[] = {
    {"state", FIELD_ENUM, F_RO | F_REQUIRED, .values = states, .about = "what it does now"},
    {"exit_status", FIELD_INT, F_RO, -1, 1024, .about = "how it ended; -1: unknown"},
};
TYPE(model_wait, "end", NULL, "End", wait_fields, "How an instance ended, or that it goes on.");

static const struct field top_fields[] = {
    {"processes", FIELD_ANY, F_RO | F_REQUIRED, .about = "a list of objects"},
};
TYPE(model_top, "processes", NULL, "Processes", top_fields, "What runs inside of an instance.");

static const struct field rename_fields[] = {
    {"name", FIELD_NAME, F_REQUIRED, .about = "the new name"},
};
TYPE(model_rename, "rename request", NULL, "Rename", rename_fields, "A new name.");

static const struct field token_fields[] = {
    {"token", FIELD_STRING, F_RO | F_REQUIRED, 1, 128,
     .about = "for \"Authorization: Bearer\"; shown this once"},
};
TYPE(model_token, "token", NULL, "Token", token_fields, "A new token.");

static const struct field stats_fields[] = {
    {"cpu_ns", FIELD_INT, F_RO | F_REQUIRED, 0, NUMBER_MAX, .about = "CPU time of its process"},
    {"rss", FIELD_INT, F_RO | F_REQUIRED, 0, NUMBER_MAX, .about = "bytes of memory that its process has now"},
    {"uptime_ms", FIELD_INT, F_RO | F_REQUIRED, 0, NUMBER_MAX, .about = "since its process started"},
    {"engine", FIELD_ANY, F_RO, .about = "what the instance itself counts"},
};
TYPE(model_stats, "stats", NULL, "Stats", stats_fields, "What an instance uses.");

static const char *const spans[] = {"hour", "day", "month", NULL};
static const struct field history_fields[] = {
    {"span", FIELD_ENUM, F_RO | F_REQUIRED, .values = spans, .about = "how far back"},
    {"step_ms", FIELD_INT, F_RO | F_REQUIRED, 1, NUMBER_MAX, .about = "between two records"},
    {"time_ms", FIELD_ANY, F_RO | F_REQUIRED,
     .about = "when, since 1970; records that are not there are left out"},
    {"series", FIELD_ANY, F_RO | F_REQUIRED,
     .about =
         "for each column as many numbers (null: unknown): cpu (seconds per second), memory (bytes), the "
         "rest per second"},
};
TYPE(model_history, "history", NULL, "History", history_fields, "What an instance used.");

static const struct field web_fields[] = {
    {"url", FIELD_STRING, F_RO | F_REQUIRED, 1, 256,
     .about = "a link that signs in once, within five minutes: on this host, or over TLS where the caller "
              "came by it"},
    {"code", FIELD_STRING, F_RO | F_REQUIRED, 1, 128, .about = "what the link signs in with"},
};
TYPE(model_web, "link", NULL, "WebLink", web_fields, "A one-time link to the web page.");

static const struct field signin_fields[] = {
    {"code", FIELD_STRING, F_REQUIRED, 1, 128, .about = "the code of a one-time link"},
};
TYPE(model_signin, "sign-in", NULL, "SignIn", signin_fields, "A one-time code.");

static const struct field host_fields[] = {
    {"version", FIELD_STRING, F_RO | F_REQUIRED, 1, 64, .about = "of the daemon"},
    {"pid", FIELD_INT, F_RO | F_REQUIRED, 1, NUMBER_MAX, .about = "of the daemon"},
    {"state_dir", FIELD_STRING, F_RO | F_REQUIRED, 1, PATH_LEN, .about = "where it keeps its state"},
    {"cpus", FIELD_INT, F_RO | F_REQUIRED, 1, NUMBER_MAX, .about = "of the host"},
    {"memory", FIELD_INT, F_RO | F_REQUIRED, 0, NUMBER_MAX, .about = "of the host, in bytes"},
    {"kernel", FIELD_STRING, F_RO | F_REQUIRED, 0, 256, .about = "of the host"},
    {"uptime_ms", FIELD_INT, F_RO | F_REQUIRED, 0, NUMBER_MAX, .about = "of the daemon"},
};
TYPE(model_host, "host", NULL, "Host", host_fields, "The daemon and its host.");

static const struct field whoami_fields[] = {
    {"name", FIELD_STRING, F_RO | F_REQUIRED, 0, 64, .about = "who the daemon takes you for"},
    {"role", FIELD_ENUM, F_RO | F_REQUIRED, .values = roles, .about = "what you may do"},
};
TYPE(model_whoami, "caller", NULL, "Caller", whoami_fields, "Who asks.");

static const struct field problem_fields[] = {
    {"type", FIELD_STRING, F_RO | F_REQUIRED, 0, 128, .about = "always about:blank; see code"},
    {"title", FIELD_STRING, F_RO | F_REQUIRED, 0, 128, .about = "the code in words"},
    {"status", FIELD_INT, F_RO | F_REQUIRED, 400, 599, .about = "the HTTP status"},
    {"code", FIELD_STRING, F_RO | F_REQUIRED, 1, 64, .about = "a word that never changes its meaning"},
    {"detail", FIELD_STRING, F_RO | F_REQUIRED, 0, 512, .about = "what was wrong, with what"},
    {"hint", FIELD_STRING, F_RO, 0, 256, .about = "what to do"},
};
TYPE(model_problem, "problem", NULL, "Problem", problem_fields, "Why a request was refused (RFC 9457).");

const struct object_type *const model_types[] = {
    &model_instance,
    &model_image,
    &model_volume,
    &model_network,
    &model_user,
    &model_job,
    &model_event,
    &model_audit,
    &model_error,
    &model_stop,
    &model_rename,
    &model_clone,
    &model_start,
    &model_kill,
    &model_wait,
    &model_top,
    &model_token,
    &model_stats,
    &model_host,
    &model_whoami,
    &model_problem,
    &model_history,
    &model_web,
    &model_signin,
    &model_snapshot,
    &model_snapshot_request,
    &model_restore,
    &model_template,
    &model_template_use,
    &model_export,
    &model_import,
    &model_backup,
    &model_backup_request,
    &model_backup_restore,
    &model_schedule,
    NULL,
};

/* Counters for Prometheus. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/util.h"
#include "daemon/route.h"

static uint64_t by_class[6]; /* main loop */
static uint64_t duration_us, requests;

void metrics_request(int status, uint64_t us)
{
    by_class[status >= 100 && status < 600 ? status / 100 : 0]++;
    duration_us += us;
    requests++;
}

static uint64_t own_rss(void)
{
    unsigned long long pages = 0;
    FILE *file = fopen("/proc/self/statm", "re");
    if (file) {
        if (fscanf(file, "%*u %llu", &pages) != 1) {
            pages = 0;
        }
        fclose(file);
    }
    return pages * (uint64_t)sysconf(_SC_PAGESIZE);
}

static uint64_t count_state(struct core *core, const char *state)
{
    struct store_node node = {.op = STORE_OP_EQ, .path = "state", .type = STORE_TEXT, .text = state};
    struct store_query query = {.nodes = &node, .count = 1};
    uint64_t total = 0;
    store_list(core_store(core), "instance", &query, NULL, NULL, &total, NULL);
    return total;
}

char *metrics_text(struct core *core)
{
    char *text = NULL;
    size_t len = 0;
    FILE *out = open_memstream(&text, &len);
    if (!out) {
        return NULL;
    }
    const struct field *state = field_find(&model_instance, "state", 5);
    fprintf(out, "# HELP fonda_instances Instances by state.\n# TYPE fonda_instances gauge\n");
    for (unsigned i = 0; state->values[i]; i++) {
        fprintf(out, "fonda_instances{state=\"%s\"} %" PRIu64 "\n", state->values[i],
                count_state(core, state->values[i]));
    }
    fprintf(out,
            "# HELP fonda_jobs_open Jobs that are queued or run.\n# TYPE fonda_jobs_open "
            "gauge\nfonda_jobs_open %u\n",
            job_count_open(core));
    fprintf(
        out,
        "# HELP fonda_requests_total Requests by class of answer.\n# TYPE fonda_requests_total counter\n");
    for (unsigned i = 1; i < ARRAY_SIZE(by_class); i++) {
        fprintf(out, "fonda_requests_total{class=\"%uxx\"} %" PRIu64 "\n", i, by_class[i]);
    }
    fprintf(out,
            "# HELP fonda_request_seconds Time spent in requests.\n# TYPE fonda_request_seconds summary\n"
            "fonda_request_seconds_sum %.6f\nfonda_request_seconds_count %" PRIu64 "\n",
            (double)duration_us / 1e6, requests);
    fprintf(out,
            "# HELP fonda_events_total Events so far.\n# TYPE fonda_events_total counter\nfonda_events_total "
            "%" PRIu64 "\n",
            store_log_last(core_store(core), EVENTS_LOG));
    fprintf(out,
            "# HELP fonda_memory_bytes Resident memory of the daemon.\n# TYPE fonda_memory_bytes gauge\n"
            "fonda_memory_bytes %" PRIu64 "\n",
            own_rss());
    fprintf(out,
            "# HELP fonda_uptime_seconds Since the daemon started.\n# TYPE fonda_uptime_seconds gauge\n"
            "fonda_uptime_seconds %.3f\n",
            (double)core_uptime_ms(core) / 1e3);
    fclose(out);
    return text;
}

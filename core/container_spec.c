/*
 * Whether a container's members make sense, as far as that can be said before it is started: so that whoever
 * creates or changes one hears of it then, with the member's name. What bundle_parse.c and netd say later, of
 * the same forms.
 *
 * Invariant: nothing is refused here that would start.
 */
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/options.h"
#include "base/util.h"
#include "core/core_int.h"

#define CPUS_MIN 0.01
#define CPUS_MAX 10000.0

static bool is_cpus(const char *text)
{
    char *end = NULL;
    double value = strtod(text, &end);
    return text[0] >= '0' && text[0] <= '9' && *end == '\0' && value >= CPUS_MIN && value <= CPUS_MAX;
}

static bool is_variable(const char *text)
{
    return text[0] != '\0' && text[0] != '=';
}

static bool is_port(const char *text, size_t len)
{
    char digits[6];
    uint64_t value;
    if (len == 0 || len >= sizeof(digits)) {
        return false;
    }
    memcpy(digits, text, len);
    digits[len] = '\0';
    return parse_uint(digits, &value, NULL) == 0 && value >= 1 && value <= 65535;
}

/* [ADDRESS:]HOST:CONTAINER[/udp] */
static bool is_published(const char *text)
{
    size_t len = strlen(text);
    if (len > 4 && (strcmp(text + len - 4, "/udp") == 0 || strcmp(text + len - 4, "/tcp") == 0)) {
        len -= 4;
    }
    const char *last = memrchr(text, ':', len);
    const char *first = last ? memrchr(text, ':', (size_t)(last - text)) : NULL;
    const char *host = first ? first + 1 : text;
    char address[INET_ADDRSTRLEN] = "127.0.0.1";
    struct in_addr ignored;
    if (!last || (first && (size_t)(first - text) >= sizeof(address))) {
        return false;
    }
    if (first) {
        memcpy(address, text, (size_t)(first - text));
        address[first - text] = '\0';
    }
    return is_port(host, (size_t)(last - host)) && is_port(last + 1, (size_t)(text + len - last - 1)) &&
           inet_pton(AF_INET, address, &ignored) == 1;
}

/* SOURCE:/TARGET[:OPTIONS] */
static bool is_mount(const char *text)
{
    const char *colon = strchr(text, ':');
    return colon && colon != text && colon[1] == '/';
}

static const struct {
    const char *member, *hint;
    bool (*ok)(const char *text);
} rules[] = {
    {"cpu_limit", "a number of CPUs, such as 1.5", is_cpus},
    {"env", "NAME=VALUE", is_variable},
    {"publish", "[ADDRESS:]HOST:CONTAINER[/udp], with ports from 1 to 65535, such as 8080:80", is_published},
    {"mounts", "SOURCE:/TARGET[:ro]", is_mount},
};

int container_spec_check(const json_t *spec, struct fault *fault)
{
    for (size_t i = 0; i < ARRAY_SIZE(rules); i++) {
        const json_t *value = json_object_get(spec, rules[i].member);
        size_t count = json_is_array(value) ? json_array_size(value) : json_is_string(value) ? 1 : 0;
        for (size_t k = 0; k < count; k++) {
            const char *text = json_string_value(json_is_array(value) ? json_array_get(value, k) : value);
            if (text && !rules[i].ok(text)) {
                return fault_set(fault, FAULT_INVALID, rules[i].hint, "'%s': '%.128s' can't be understood",
                                 rules[i].member, text);
            }
        }
    }
    return 0;
}

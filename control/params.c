/*
 * Parameters of a method, checked by a table: control_params.
 */
#include <string.h>

#include "base/util.h"
#include "control/control_int.h"

static const struct control_param *find(const struct control_param *table, unsigned count, const char *name)
{
    for (unsigned i = 0; i < count; i++) {
        if (strcmp(table[i].name, name) == 0) {
            return &table[i];
        }
    }
    return NULL;
}

static bool take_uint(struct control_call *call, const struct control_param *param, json_t *value,
                      void *target)
{
    json_int_t number = json_integer_value(value);
    if (!json_is_integer(value) || number < 0 || (uint64_t)number < param->min ||
        (uint64_t)number > param->max) {
        control_fail(call, "bad_params", NULL, "'%s' is not a whole number from %llu to %llu", param->name,
                     (unsigned long long)param->min, (unsigned long long)param->max);
        return false;
    }
    *(uint64_t *)target = (uint64_t)number;
    return true;
}

static bool take(struct control_call *call, const struct control_param *param, json_t *value, void *target)
{
    static const char *const kinds[] = {[CONTROL_STRING] = "a string",
                                        [CONTROL_BOOL] = "true or false",
                                        [CONTROL_OBJECT] = "an object",
                                        [CONTROL_ARRAY] = "a list"};
    bool fits = false;
    switch (param->type) {
    case CONTROL_UINT: return take_uint(call, param, value, target);
    case CONTROL_STRING:
        fits = json_is_string(value);
        *(const char **)target = json_string_value(value);
        break;
    case CONTROL_BOOL:
        fits = json_is_boolean(value);
        *(bool *)target = json_is_true(value);
        break;
    case CONTROL_OBJECT:
        fits = json_is_object(value);
        *(json_t **)target = value;
        break;
    case CONTROL_ARRAY:
        fits = json_is_array(value);
        *(json_t **)target = value;
        break;
    }
    if (!fits) {
        control_fail(call, "bad_params", NULL, "'%s' is not %s", param->name, kinds[param->type]);
    }
    return fits;
}

bool control_params(struct control_call *call, json_t *params, const struct control_param *table,
                    unsigned count, void *target)
{
    const char *name;
    json_t *value;
    json_object_foreach(params, name, value)
    {
        if (!find(table, count, name)) {
            control_fail(call, "bad_params", NULL, "unknown parameter '%.64s'", name);
            return false;
        }
    }
    for (unsigned i = 0; i < count; i++) {
        value = json_object_get(params, table[i].name);
        if (value ? !take(call, &table[i], value, (char *)target + table[i].offset) : table[i].required) {
            if (!value) {
                control_fail(call, "bad_params", NULL, "the parameter '%s' is missing", table[i].name);
            }
            return false;
        }
    }
    return true;
}

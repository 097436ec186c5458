/*
 * Fuzz target: what callers of the API send. The first byte chooses: a filter and a sort order, or a body for
 * one of the kinds, as creation or as change.
 */
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "core/filter.h"
#include "core/model.h"
#include "fuzz/fuzz.h"

static void fuzz_filter(const char *text)
{
    static struct filter filter;
    struct store_query query = {0};
    struct fault fault = {0};
    if (filter_parse(&model_instance, text, &filter, &fault) == 0) {
        for (unsigned i = 0; i < filter.count; i++) {
            const struct store_node *node = &filter.nodes[i];
            bool inner = node->op == STORE_OP_AND || node->op == STORE_OP_OR;
            if ((inner && (node->left >= i || node->right >= i)) ||
                (node->op == STORE_OP_NOT && node->left >= i)) {
                abort(); /* children come before their parents: nothing loops */
            }
        }
    }
    filter_sort(&model_instance, text, &query, &fault);
}

static void fuzz_body(const struct object_type *type, enum field_mode mode, const char *bytes, size_t size)
{
    struct fault fault = {0};
    json_t *body = json_loadb(bytes, size, JSON_REJECT_DUPLICATES, NULL);
    if (body && field_check(type, body, mode, true, &fault) == 0) {
        char *text = json_dumps(body, JSON_COMPACT);
        if (!text) {
            abort(); /* what was accepted can be stored */
        }
        free(text);
    }
    json_decref(body);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const struct object_type *const types[] = {&model_instance, &model_volume, &model_network,
                                                      &model_user, &model_stop};
    if (size < 1) {
        return 0;
    }
    char *text = malloc(size);
    if (!text) {
        return 0;
    }
    memcpy(text, data + 1, size - 1);
    text[size - 1] = '\0';
    unsigned which = data[0] % (2 * ARRAY_SIZE(types) + 1);
    if (which == 0) {
        fuzz_filter(text);
    } else {
        fuzz_body(types[(which - 1) / 2], which % 2 ? FIELD_CREATE : FIELD_CHANGE, text, size - 1);
    }
    free(text);
    return 0;
}

/* Users by name, from the image's own files: passwd(5), group(5). No NSS: its libraries would be the image's.
 */
#include "guest/init/init.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/options.h"
#include "base/util.h"

#define FIELDS_MAX 8

/* Calls fn with the fields of each line until it returns true. */
static bool each_line(const char *path, bool (*fn)(void *opaque, char **fields, unsigned count), void *opaque)
{
    FILE *file = fopen(path, "re");
    char *line = NULL;
    size_t room = 0;
    bool found = false;
    while (file && !found && getline(&line, &room, file) >= 0) {
        char *fields[FIELDS_MAX], *rest = line;
        unsigned count = 0;
        line[strcspn(line, "\n")] = '\0';
        while (count < FIELDS_MAX && rest) {
            fields[count++] = strsep(&rest, ":");
        }
        found = fn(opaque, fields, count);
    }
    free(line);
    if (file) {
        fclose(file);
    }
    return found;
}

static bool number_of(const char *text, uint32_t *ret_number)
{
    uint64_t value;
    if (parse_uint(text, &value, NULL) < 0 || value > UINT32_MAX) {
        return false;
    }
    *ret_number = (uint32_t)value;
    return true;
}

struct search {
    const char *name;
    uint32_t number;
    bool by_number;
    struct user *user;
    char login[64]; /* of the user that was found */
};

static bool is_match(const struct search *search, char **fields)
{
    uint32_t number;
    return search->by_number ? number_of(fields[2], &number) && number == search->number
                             : strcmp(fields[0], search->name) == 0;
}

/* name:password:UID:GID:comment:home:shell */
static bool take_user(void *opaque, char **fields, unsigned count)
{
    struct search *search = opaque;
    uint32_t uid, gid;
    if (count < 6 || !is_match(search, fields) || !number_of(fields[2], &uid) ||
        !number_of(fields[3], &gid)) {
        return false;
    }
    search->user->uid = uid;
    search->user->gid = gid;
    snprintf(search->user->home, sizeof(search->user->home), "%s", fields[5]);
    snprintf(search->login, sizeof(search->login), "%s", fields[0]);
    return true;
}

/* name:password:GID:member,member */
static bool take_group(void *opaque, char **fields, unsigned count)
{
    struct search *search = opaque;
    uint32_t gid;
    if (count < 3 || !is_match(search, fields) || !number_of(fields[2], &gid)) {
        return false;
    }
    search->user->gid = gid;
    return true;
}

static bool take_membership(void *opaque, char **fields, unsigned count)
{
    struct search *search = opaque;
    uint32_t gid;
    char *list = count >= 4 ? fields[3] : NULL;
    for (char *name; list && (name = strsep(&list, ","));) {
        if (strcmp(name, search->login) == 0 && number_of(fields[2], &gid) &&
            search->user->group_count < GROUPS_MAX) {
            search->user->groups[search->user->group_count++] = gid;
        }
    }
    return false;
}

int user_find(const char *text, struct user *ret_user, struct err *err)
{
    char name[128];
    struct user user = {.home = ""};
    snprintf(name, sizeof(name), "%.*s", (int)strcspn(text, ":"), text);
    const char *group = strchr(text, ':');
    struct search search = {.name = name, .user = &user};
    search.by_number = number_of(name, &search.number);
    bool found = each_line("/etc/passwd", take_user, &search);
    if (!found && !search.by_number) {
        return err_set(err, -ENOENT, "there is no user '%s' in /etc/passwd", name);
    }
    if (!found) {
        user.uid = search.number;
    } else if (!group) {
        each_line("/etc/group", take_membership, &search);
    }
    if (group && group[1]) {
        struct search groups = {.name = group + 1, .user = &user};
        groups.by_number = number_of(group + 1, &groups.number);
        if (!each_line("/etc/group", take_group, &groups) && !groups.by_number) {
            return err_set(err, -ENOENT, "there is no group '%s' in /etc/group", group + 1);
        }
        user.gid = groups.by_number ? groups.number : user.gid;
    }
    *ret_user = user;
    return 0;
}

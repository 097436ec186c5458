#include "image/ref.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define LOWER_DIGIT "abcdefghijklmnopqrstuvwxyz0123456789"
#define ALNUM       LOWER_DIGIT "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

/* One component of a name: alphanumeric runs, separated by one '.', one or two '_', or any number of '-'. */
static bool component_valid(const char *p, size_t length)
{
    size_t i = 0;
    while (true) {
        size_t run = 0;
        while (i < length && strchr(LOWER_DIGIT, p[i])) {
            i++, run++;
        }
        if (run == 0) {
            return false;
        }
        if (i == length) {
            return true;
        }
        char separator = p[i];
        size_t most = separator == '.' ? 1 : separator == '_' ? 2 : separator == '-' ? length : 0;
        for (run = 0; i < length && p[i] == separator; i++) {
            run++;
        }
        if (run > most) {
            return false;
        }
    }
}

static bool name_valid(const char *name)
{
    while (true) {
        size_t length = strcspn(name, "/");
        if (!component_valid(name, length)) {
            return false;
        }
        if (!name[length]) {
            return true;
        }
        name += length + 1;
    }
}

static bool host_valid(const char *host)
{
    if (host[0] == '[') {
        size_t inner = strspn(host + 1, "0123456789abcdefABCDEF:.");
        if (inner < 2 || host[1 + inner] != ']') {
            return false;
        }
        host += inner + 2;
    } else {
        size_t length = strspn(host, ALNUM ".-");
        if (length == 0 || host[0] == '-' || host[0] == '.') {
            return false;
        }
        host += length;
    }
    if (*host == ':') {
        size_t digits = strspn(host + 1, "0123456789");
        return digits >= 1 && digits <= 5 && !host[1 + digits];
    }
    return *host == '\0';
}

static bool tag_valid(const char *tag)
{
    size_t length = strlen(tag);
    return length >= 1 && length <= REF_TAG_MAX && tag[0] != '.' && tag[0] != '-' &&
           strspn(tag, ALNUM "_.-") == length;
}

int image_ref_parse(const char *text, struct image_ref *ret_ref, struct err *err)
{
    struct image_ref ref = {.host = "docker.io"};
    char rest[REF_TEXT_MAX];
    if (strlen(text) >= sizeof(rest)) {
        return err_set(err, -EINVAL, "the image name '%.40s...' is too long", text);
    }
    strcpy(rest, text);
    char *at = strchr(rest, '@');
    if (at) {
        *at = '\0';
        if (!digest_valid(at + 1)) {
            return err_set(
                err, -EINVAL,
                "'%s' is not an image name: '@' must be followed by 'sha256:' and 64 hexadecimal digits",
                text);
        }
        strcpy(ref.digest, at + 1);
    }
    char *name = rest;
    char *slash = strchr(rest, '/');
    if (slash) {
        *slash = '\0';
        if (strpbrk(rest, ".:[") || strcmp(rest, "localhost") == 0) {
            if (strlen(rest) > REF_HOST_MAX || !host_valid(rest)) {
                return err_set(err, -EINVAL, "'%s' is not an image name: '%s' is not a host", text, rest);
            }
            strcpy(ref.host, rest);
            name = slash + 1;
        } else {
            *slash = '/';
        }
    }
    char *colon = strrchr(name, ':');
    if (colon && !strchr(colon, '/')) {
        *colon = '\0';
        if (!tag_valid(colon + 1)) {
            return err_set(err, -EINVAL,
                           "'%s' is not an image name: a tag has up to %d letters, digits, '_', '.' and '-'",
                           text, REF_TAG_MAX);
        }
        strcpy(ref.tag, colon + 1);
    } else if (!at) {
        strcpy(ref.tag, "latest");
    }
    if (strcmp(ref.host, "index.docker.io") == 0 || strcmp(ref.host, "registry-1.docker.io") == 0) {
        strcpy(ref.host, "docker.io");
    }
    bool official = strcmp(ref.host, "docker.io") == 0 && !strchr(name, '/');
    if (!name_valid(name) || strlen(name) + (official ? 8 : 0) > REF_NAME_MAX) {
        return err_set(err, -EINVAL,
                       "'%s' is not an image name: expected [HOST[:PORT]/]NAME[:TAG][@sha256:...], the name "
                       "in lower case",
                       text);
    }
    snprintf(ref.name, sizeof(ref.name), "%s%.247s", official ? "library/" : "", name);
    if (!official) {
        strcpy(ref.name, name);
    }
    *ret_ref = ref;
    return 0;
}

void image_ref_format(const struct image_ref *ref, char ret_text[static REF_TEXT_MAX])
{
    snprintf(ret_text, REF_TEXT_MAX, "%s/%s%s%s%s%s", ref->host, ref->name, ref->tag[0] ? ":" : "", ref->tag,
             ref->digest[0] ? "@" : "", ref->digest);
}

const char *image_ref_short(const char *text)
{
    if (strncmp(text, "docker.io/library/", 18) == 0) {
        return text + 18;
    }
    return strncmp(text, "docker.io/", 10) == 0 && strchr(text + 10, '/') ? text + 10 : text;
}

/*
 * Sites: what places in the code remember of the TLB (bt_int.h has the picture, stubs.c fills them). Compiled
 * for general registers only.
 *
 * Invariants
 *  1. A filled site is in site_list, and site_pages has a mark for its page.
 *  2. What a filled site holds is true: whoever drops an entry of a user page from the TLB, or changes the
 *     address-space number of user accesses, empties the sites (all: there is no telling which cheaply).
 */
#include "cpu/bt/bt_int.h"

void bt_sites_empty(struct bt_vcpu *v)
{
    if (v->sites_filled == 0) {
        return;
    }
    for (uint32_t i = 0; i < v->sites_filled; i++) {
        struct bt_site *s = (struct bt_site *)(uintptr_t)v->site_list[i];
        s->page = BT_SITE_EMPTY;
        s->addend = 0;
    }
    v->sites_filled = 0;
    for (unsigned i = 0; i < BT_SITE_PAGES; i++) {
        v->site_pages[i] = 0;
    }
}

void bt_sites_forget(struct bt_vcpu *v, bool hints)
{
    bt_sites_empty(v);
    v->sites_used = 0;
    for (unsigned i = 0; hints && i < ARRAY_SIZE(v->site_poly); i++) {
        v->site_heat[i] = 0;
        v->site_poly[i] = false;
    }
}

void bt_site_sample(struct bt_vcpu *v)
{
    uint8_t *heat = &v->site_heat[bt_site_hash(v->cpu.s.rip)];
    if (*heat < BT_SITE_HOT && ++*heat == BT_SITE_HOT) {
        struct bt_block *b = bt_block_find(v, v->mode);
        if (b) {
            bt_block_drop(v, b);
        }
    }
}

void bt_site_refused(struct bt_vcpu *v, bool now)
{
    struct bt_block *b = bt_block_at(v, v->site - 1);
    if (!b) {
        return;
    }
    struct bt_site_info *info = &v->site_infos[(struct bt_site *)(uintptr_t)v->site_at - v->sites];
    if (!now && ++info->score <= BT_SITE_SCORE_MAX) {
        return;
    }
    v->site_poly[bt_site_hash(bt_rip_at(v, b, v->site - 1))] = true;
    bt_block_drop(v, b);
}

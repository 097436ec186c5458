/*
 * What a debugger asks of a vCPU: steps, and points to stop at. General registers only.
 *
 * A block never goes past an EXEC point: translate.c ends it there, and puts bt_op_stop in the place of the
 * instruction. So code runs at full speed until it gets to one. Stepping and watching run one instruction at
 * a time, as the guest's own debug registers do (run.c, debugging).
 *
 * A debugger that continues at an EXEC point stops there again at once: it takes the point away and steps
 * first.
 */
#include <errno.h>

#include "cpu/bt/op.h"

static bool has_kind(const struct engine_debug *debug, bool exec)
{
    for (unsigned i = 0; i < debug->count; i++) {
        if ((debug->points[i].kind == ENGINE_POINT_EXEC) == exec) {
            return true;
        }
    }
    return false;
}

int bt_set_debug(struct vcpu *vcpu, const struct engine_debug *debug)
{
    struct bt_vcpu *v = (struct bt_vcpu *)(void *)vcpu;
    if (debug->count > ENGINE_POINTS_MAX) {
        return -ENOSPC;
    }
    bool had_exec = v->debug_exec;
    x86_copy_bytes(&v->debug, debug, sizeof(*debug));
    v->debug_exec = has_kind(debug, true);
    v->debug_watch = has_kind(debug, false);
    v->debug_alone = debug->step || v->debug_watch;
    v->stop = (struct engine_stop){.step = false};
    if (had_exec || v->debug_exec) {
        bt_fpu_save(v);
        bt_code_flush(v); /* translated with other points in mind */
        v->link_from = NULL;
        v->fill_jc = false;
    }
    return 0;
}

int bt_walk(struct vcpu *vcpu, uint64_t va, gpa_t *ret_gpa)
{
    const struct bt_vcpu *v = (const struct bt_vcpu *)(const void *)vcpu;
    return x86_walk_quietly(&v->cpu, va, ret_gpa) ? 0 : -EFAULT;
}

bool bt_debug_exec_at(const struct bt_vcpu *v, uint64_t linear)
{
    for (unsigned i = 0; i < v->debug.count; i++) {
        if (v->debug.points[i].kind == ENGINE_POINT_EXEC && v->debug.points[i].va == linear) {
            return true;
        }
    }
    return false;
}

int bt_op_stop(struct bt_vcpu *v, const struct bt_op *op)
{
    uint64_t base = op_code64(v) ? 0 : v->cpu.s.seg[X86_CS].base;
    v->stop = (struct engine_stop){.point = true, .kind = ENGINE_POINT_EXEC, .va = op->rip + base};
    return BT_STOP;
}

void bt_debug_accessed(struct bt_vcpu *v, uint64_t va, unsigned size, bool write)
{
    for (unsigned i = 0; i < v->debug.count && !v->stop.point; i++) {
        const struct engine_point *point = &v->debug.points[i];
        if (point->kind == ENGINE_POINT_EXEC || (point->kind == ENGINE_POINT_WRITE && !write) ||
            (point->kind == ENGINE_POINT_READ && write)) {
            continue;
        }
        if (va - point->va < point->size || point->va - va < size) {
            v->stop = (struct engine_stop){.point = true, .kind = point->kind, .va = point->va};
        }
    }
}

bool bt_debug_stops(struct bt_vcpu *v, struct vcpu_exit *exit)
{
    v->stop.step = v->debug.step;
    if (!v->stop.step && !v->stop.point) {
        return false;
    }
    exit->reason = EXIT_DEBUG;
    exit->debug = v->stop;
    v->stop = (struct engine_stop){.step = false};
    return true;
}

/*
 * What the files of dev/pci/ share.
 */
#ifndef FONDA_DEV_PCI_PCI_INT_H
#define FONDA_DEV_PCI_PCI_INT_H

#include "dev/pci/pci.h"

/* Header type 0 registers: PCI 3.0 section 6.1. */
#define PCI_VENDOR         0x00u
#define PCI_DEVICE         0x02u
#define PCI_COMMAND        0x04u
#define PCI_STATUS         0x06u
#define PCI_REVISION       0x08u
#define PCI_CLASS          0x09u
#define PCI_BAR0           0x10u
#define PCI_SUBVENDOR      0x2cu
#define PCI_SUBSYSTEM      0x2eu
#define PCI_CAP_POINTER    0x34u
#define PCI_INTERRUPT_LINE 0x3cu
#define PCI_INTERRUPT_PIN  0x3du
#define PCI_HEADER_END     0x40u

#define PCI_COMMAND_MEMORY   0x0002u
#define PCI_COMMAND_MASTER   0x0004u
#define PCI_COMMAND_NO_INTX  0x0400u
#define PCI_STATUS_INTERRUPT 0x0008u
#define PCI_STATUS_CAPS      0x0010u

/* config.c: accesses to one function's configuration space; size is 1, 2 or 4, offset + size <= 256. */
uint32_t pci_config_read(struct pci_dev *dev, unsigned offset, unsigned size);
void pci_config_write(struct pci_dev *dev, unsigned offset, unsigned size, uint32_t value);
void pci_config_reset(struct pci_dev *dev);

/* msix.c */
/* Whether [offset, offset + size) of a BAR belongs to the MSI-X table or its pending bits. */
bool pci_msix_claims(const struct pci_dev *dev, unsigned bar, uint64_t offset);
uint64_t pci_msix_read(const struct pci_dev *dev, uint64_t offset, unsigned size);
void pci_msix_write(struct pci_dev *dev, uint64_t offset, unsigned size, uint64_t value);
void pci_msix_control_written(struct pci_dev *dev);
void pci_msix_reset(struct pci_dev *dev);

/* host.c */
void pci_host_bars_changed(struct pci_host *host);
void pci_host_send_msi(struct pci_host *host, uint64_t address, uint32_t data);
void pci_host_intx_changed(struct pci_host *host, unsigned slot);

#endif

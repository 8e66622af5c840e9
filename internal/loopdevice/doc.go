// Package loopdevice gives tests file systems of their own, small ones on loop devices, which can be filled up and cut off as if the power
// had failed. It needs Linux, root and the tools of ext4; a test that asks for a device elsewhere is skipped, and says why.
package loopdevice

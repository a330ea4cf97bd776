package harness

import java.awt.color.ColorSpace
import java.awt.image.BufferedImage
import java.awt.image.DataBuffer
import java.awt.image.IndexColorModel
import java.awt.image.Raster
import java.io.File
import javax.imageio.ImageIO

/** ARGB pixels as a phone's decoder would hand them over: samples as they are stored, high bytes of 16 bits. */
class Pixels(val values: IntArray, val width: Int, val height: Int)

fun pixels(file: File): Pixels {
    val reader = ImageIO.getImageReadersBySuffix(file.extension).next()
    return ImageIO.createImageInputStream(file).use { stream ->
        reader.input = stream
        val image = runCatching { reader.read(0) }.getOrNull() // not every Java makes a picture of four inks
        val inks = image == null || image.colorModel.colorSpace.type == ColorSpace.TYPE_CMYK
        if (inks) fromInks(reader.readRaster(0, null)) else fromImage(checkNotNull(image))
    }
}

private fun fromImage(image: BufferedImage): Pixels {
    val (width, height) = image.width to image.height
    val values = IntArray(width * height)
    if (image.colorModel is IndexColorModel) {
        image.getRGB(0, 0, width, height, values, 0, width)
        return Pixels(values, width, height)
    }
    val shift = if (image.raster.transferType == DataBuffer.TYPE_USHORT) 8 else 0
    val bands = image.raster.numBands
    val sample = IntArray(bands)
    for (i in values.indices) {
        image.raster.getPixel(i % width, i / width, sample)
        val colour = if (bands < 3) List(3) { sample[0] shr shift } else List(3) { sample[it] shr shift }
        val alpha = if (bands % 2 == 0) sample[bands - 1] shr shift else 255
        values[i] = (alpha shl 24) or (colour[0] shl 16) or (colour[1] shl 8) or colour[2]
    }
    return Pixels(values, width, height)
}

/** Four inks as Adobe stores them in a JPEG, that is inverted: the light that an ink leaves of the black's. */
private fun fromInks(raster: Raster): Pixels {
    val sample = IntArray(4)
    val values = IntArray(raster.width * raster.height) { i ->
        raster.getPixel(i % raster.width, i / raster.width, sample)
        val (r, g, b) = List(3) { (sample[it] * sample[3] + 127) / 255 }
        (255 shl 24) or (r shl 16) or (g shl 8) or b
    }
    return Pixels(values, raster.width, raster.height)
}
